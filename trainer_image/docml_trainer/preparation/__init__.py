"""From files to an encoded, split data set."""
