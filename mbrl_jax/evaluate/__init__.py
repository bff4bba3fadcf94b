"""What a trained run is worth: greedy episodes, open-loop predictions, scores and pictures."""
