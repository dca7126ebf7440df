"""Worker processes under a supervisor: started, watched, drained, replaced."""
