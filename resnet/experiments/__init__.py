"""What a run is on disk: its folders, its lock, its curves."""
