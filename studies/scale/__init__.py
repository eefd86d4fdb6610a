"""Plan of a run on 3.6 billion images: formulas, and a simulation of its data plan.

python -m studies.scale --write       write the tables of docs/scale.md
python -m studies.scale --simulate    simulate the data plan (minutes), then write the tables
"""
