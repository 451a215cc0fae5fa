"""TFLite files as objects that can be changed, and back."""


def unpack(content: bytes):
    """The `ModelT` of a file: TFLite's schema as Python objects."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))


def pack(model) -> bytes:
    """The file of a `ModelT`, with its weights where processors load them fast."""
    import flatbuffers

    class Builder(flatbuffers.Builder):
        def StartVector(self, elemSize, numElems, alignment):
            # The schema asks for 16 bytes; the code that is generated for Python does not know it.
            return super().StartVector(elemSize, numElems, 16 if elemSize == 1 else alignment)

    builder = Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
