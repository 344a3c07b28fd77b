"""What a Vision Transformer can be asked for by name, for options and for the model itself."""

POOLINGS = ("token", "mean")
GELUS = ("exact", "tanh")
ATTENTIONS = ("xla", "cudnn")
LAST_BLOCKS = ("token", "all")
POSITION_RESIZES = ("antialiased", "dinov2")
