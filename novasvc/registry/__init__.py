"""Who is there: rows of the services table, queries for them, and the ways to reach them."""
