"""python -m data_pipelines.conversations: see README.md here."""

from data_pipelines.conversations.pipeline import main

main()
