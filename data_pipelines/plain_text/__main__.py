"""python -m data_pipelines.plain_text: see README.md here."""

from data_pipelines.plain_text.pipeline import main

main()
