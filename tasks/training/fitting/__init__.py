"""What training stages share: checkpoints, windows of a mix, the fit itself, save points."""
