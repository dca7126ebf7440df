"""Operations on many nodes: selection, waves, and the commands that are sent to the nodes."""
