"""Workers that train one model: their group and how work is split among them."""
