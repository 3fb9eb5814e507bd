"""What changes a trained model in place, so that little of it is trained again."""
