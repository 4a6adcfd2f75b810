"""python -m data_pipelines.caption_pairs: see README.md here."""

from data_pipelines.caption_pairs.pipeline import main

main()
