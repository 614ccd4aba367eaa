"""Texts and tables on their way to a model, and numbers on their way back.

tables        what the user has: frames, files, lists of dictionaries, datasets
table_files   tables in .csv, .tsv, .jsonl and .json files
squad, conll, sentences    readers of questions with answers, and of texts with tags
encoding      texts to token ids; rows of different length to one tensor
batches       examples of similar length together, and a model's outputs for each
positions     positions counted in each text's own tokens
activations   what a model makes of many texts, one vector for each
statistics    how sure a mean, a share or a correlation is
"""
