"""Names of classes -> classes of a model, by their spelling and by WordNet."""
