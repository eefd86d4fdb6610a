"""How such weights are made: from posts with hashtags to a published model. Needs the extra [recipe].

scenes        a small generated world of pictures and hashtags, to try the rest on

posts         one file of posts -> rows and rejects; `columns` says what is what, `conversion` makes Parquet of many files
wordnet       the nouns of WordNet; `hashtags` finds hashtags in captions, spells them in one way and matches them
sampling      how often an image is seen in an epoch
curate        posts -> vocabulary.parquet, labels.parquet, manifest.json, report.md; `steps` are its steps, `tables` their
              expressions, `engine` computes those, `intake` unites the posts, `ledger` records what is done, `digest` reports

pack          images and labels -> WebDataset shards; `images` finds, `scrub` cleans them, `shards` reads and verifies
data          shards -> batches, the same for a seed wherever they are read; `stream` is their order

config        a training run as values; `presets` are those with names, `plan` is what one will take
train         the loop. `outcome` is what it begins and ends with: folder, model, classes, and the model it publishes
feed          labelled pictures -> endless batches, the same for any number of ranks; `check`: each once, to evaluate; `albums`
              are folders and datasets, `batches` what both share, `augment` crops and flips
objectives    losses and mixup; `optim` updates, schedule and average; `parallel` the ranks, DDP and FSDP2
checkpoints   what a run goes on from; `journal` is what it tells, `meter` how fast it works
study         all of it in miniature; `findings` is what people read of it

workers       processes that work for this one; `extras` imports what the extra brings
"""
