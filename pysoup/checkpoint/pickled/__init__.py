"""Reading what torch.save writes: an interpreter for pickles that runs nothing, zip archives, the former format."""
