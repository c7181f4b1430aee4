"""What a Prefect run needs: task runs, runners, progress, reports, events, scheduled starts, credentials."""
