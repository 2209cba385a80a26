// libtorch's optimizers, whose headers have glog's CHECK, too.
#pragma once

#include "tools/distill/torch.h"

#pragma push_macro("CHECK")
#undef CHECK
#include <torch/optim/adamw.h>
#include <torch/types.h>
// Behind the types that it uses without including them.
#include <torch/nn/utils/clip_grad.h>
#undef CHECK
#pragma pop_macro("CHECK")
