"""Generated images with realistic hashtags, for the demo, the tests and the study.

things    the 32 things, their names and synsets
shapes    polygons and lines; drawings: the shapes of each thing
painter   drawings -> pixels
scene     which things an image shows, from seed and number alone
captions  captions with true, wrong and empty hashtags; posts: the rows of the files
gallery   the folder of images and files
sheet     the contact sheet docs/scenes.png
wordnet/  an excerpt of WordNet 3.0 about these things
"""

from studies.scenes.gallery import ScenesSummary, write_scenes

__all__ = ["ScenesSummary", "write_scenes"]
