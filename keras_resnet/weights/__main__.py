"""`python -m keras_resnet.weights [NETWORK]` prints the published sets as a Markdown table."""

import argparse
import sys

from keras_resnet.weights import list_weights

if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m keras_resnet.weights", description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="such as resnet34; else all")
    try:
        for name in parser.parse_args().networks or [None]:
            print(list_weights(name))
    except ValueError as error:
        sys.exit(str(error))
