"""Results for people: page, tables, plots, pictures, ratings, regressions."""
