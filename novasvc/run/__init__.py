"""How processes run: launchers, plain scripts, and the twistd plugin."""
