"""Views through circuitsvis: attention, coloured tokens, best words."""
