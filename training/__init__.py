"""The application: trains, evaluates and exports the networks of `keras_resnet`.

It runs from a checkout, `python -m training`, and uses only public names of the library.
"""
