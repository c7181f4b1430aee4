"""What is asked of an output that is there: its rows beside their input, what a class attends to."""
