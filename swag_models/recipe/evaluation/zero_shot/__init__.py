"""Classification by hashtag logits and WordNet, without labelled images."""
