"""What a user added to a workspace: registered models and uploads."""
