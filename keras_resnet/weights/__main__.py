"""`python -m keras_resnet.weights [NETWORK]` prints the published sets as a Markdown table."""

import sys

from keras_resnet.weights import list_weights

if __name__ == "__main__":
    try:
        for name in sys.argv[1:] or [None]:
            print(list_weights(name))
    except ValueError as error:
        sys.exit(str(error))
