"""What is asked of an output that is there: its rows beside their input, rows with errors, what is attended."""
