"""Model families; importing this package registers them with timm."""

from mpvg.models import mpvg_ceit as mpvg_ceit
from mpvg.models import mpvg_sequence as mpvg_sequence
from mpvg.models import mpvg_swin as mpvg_swin
from mpvg.models import mpvg_t2t as mpvg_t2t
from mpvg.models import mpvg_vit as mpvg_vit
from mpvg.models import mpvg_vit_adapter as mpvg_vit_adapter
from mpvg.models import mpvg_vit_lite as mpvg_vit_lite
