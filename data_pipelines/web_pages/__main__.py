"""python -m data_pipelines.web_pages: see README.md here."""

from data_pipelines.web_pages.pipeline import main

main()
