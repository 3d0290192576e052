"""Looking inside a model: pictures and measurements made from what it records about itself."""
