"""Real images with the keywords of real people: clip art, and the emoji of several artists."""
