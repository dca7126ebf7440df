"""Events and notifications: emitted by one service, handled by any number of others."""
