"""Run by Alembic: the migrations, on the connection that :mod:`novasvc.registry.sql.migrate` has locked."""

from alembic import context

from novasvc.registry.sql.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
