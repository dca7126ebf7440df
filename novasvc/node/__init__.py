"""What a service is made of: its parts, the order in which they start and stop, and how healthy they are."""
