"""Curation: from posts with hashtags to a vocabulary of classes, and to labelled, resampled images.

posts     fields, columns and rejects of posts; `readers` read them from text files
ingest    files in any format -> one table of posts
queries   Ibis expressions of each step; `backends` compute them in DuckDB or Spark
matching  distinct hashtags -> WordNet synsets
sampling  frequency of classes -> repeat factors; `resampling` writes those of the images
pipeline  the steps, each done once; `curate` runs them, `report` describes the result
"""
