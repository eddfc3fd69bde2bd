from backdoor_lab.api.evaluation import Evaluation as Evaluation
from backdoor_lab.api.evaluation import Rate as Rate
from backdoor_lab.api.evaluation import evaluate as evaluate
from backdoor_lab.api.features import extract_features as extract_features
from backdoor_lab.api.filters import Filter as Filter
from backdoor_lab.api.filters import get_filter as get_filter
from backdoor_lab.api.lazy_dataset import PoisonedDataset as PoisonedDataset
from backdoor_lab.api.methods import list_methods as list_methods
from backdoor_lab.api.named_triggers import get_trigger as get_trigger
from backdoor_lab.api.poisoning import PoisonResult as PoisonResult
from backdoor_lab.api.poisoning import poison as poison
from backdoor_lab.api.repairs import Repair as Repair
from backdoor_lab.api.repairs import get_repair as get_repair
from backdoor_lab.api.results import read_results as read_results
from backdoor_lab.api.scanning import scan_dataset as scan_dataset
from backdoor_lab.api.triggers import Trigger as Trigger

__version__: str
__all__ = [
    "PoisonedDataset",
    "evaluate",
    "extract_features",
    "get_filter",
    "get_repair",
    "get_trigger",
    "list_methods",
    "poison",
    "read_results",
    "scan_dataset",
]
