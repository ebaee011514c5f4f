"""Objects in the place of names, and options that follow from the images."""
