"""Transfer terms: losses between layers of student and teacher, one method a file."""

from kd_lightning.transfer.crd import CRD as CRD
from kd_lightning.transfer.feature_matching import FeatureMatching as FeatureMatching
from kd_lightning.transfer.fitnet import FitNet as FitNet
from kd_lightning.transfer.fsp import FSP as FSP
from kd_lightning.transfer.pairwise import Pairwise as Pairwise
from kd_lightning.transfer.review import Review as Review
from kd_lightning.transfer.rkd import RKD as RKD
from kd_lightning.transfer.term import Term as Term
from kd_lightning.transfer.vid import VID as VID
