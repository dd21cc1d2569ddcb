"""A student as files for other programs: graphs, a page, a model card, and what is known of each."""
