"""Model families; importing this package registers them with timm."""

from mpvg.models import mpvg_vit as mpvg_vit
