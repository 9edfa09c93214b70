"""The Product Service: owns the products and their stock; reserves before it asks, gives back only after an answer."""
