"""How such weights are made: from posts with hashtags to training shards. Needs the extra [recipe].

scenes        a small generated world of pictures and hashtags, to try the rest on

posts         one file of posts -> rows and rejects; `columns` says what is what, `conversion` makes Parquet of many files
wordnet       the nouns of WordNet; `hashtags` finds hashtags in captions, spells them in one way and matches them
sampling      how often an image is seen in an epoch
curate        posts -> vocabulary.parquet, labels.parquet, manifest.json, report.md; `steps` are its steps, `tables` their
              expressions, `engine` computes those, `intake` unites the posts, `ledger` records what is done, `digest` reports

pack          images and labels -> WebDataset shards; `images` finds, `scrub` cleans them, `shards` reads and verifies
data          shards -> batches, the same for a seed wherever they are read; `stream` is their order
workers       processes that work for this one; `extras` imports what the extra brings
"""
