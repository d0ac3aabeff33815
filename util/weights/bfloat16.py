"""bfloat16, which numpy does not have: files keep its 16 bits as unsigned integers."""


def widen(bits):
    """uint16 bit patterns of any shape -> the float32 values that they stand for, exactly."""
    return (bits.astype("uint32") << 16).view("float32")
