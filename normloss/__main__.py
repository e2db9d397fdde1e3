"""python -m normloss VERB: the same as the console script normloss."""

from normloss.cli.verbs import console

if __name__ == "__main__":
    console()
