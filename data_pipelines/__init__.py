"""From raw corpora to ArrayRecord shards of documents: apache-beam pipelines, one folder per corpus."""
