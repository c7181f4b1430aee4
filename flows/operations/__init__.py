"""What is done: storage and the model meet here. Knows nothing of Prefect or of a terminal."""
