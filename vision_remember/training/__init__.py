"""Training: recipes, the two stages on the Hugging Face Trainer, and checkpoints that survive being killed."""

from vision_remember.training import distributed
from vision_remember.training.features import FeatureCache
from vision_remember.training.located import RecipeError
from vision_remember.training.recipe import Recipe, load_recipe
from vision_remember.training.trainer import TrainingInterrupted, train

__all__ = ["FeatureCache", "Recipe", "RecipeError", "TrainingInterrupted", "distributed", "load_recipe", "train"]
