/* Every kernel of one dtype and instruction set, and their table. Included once a dtype by each isa_<isa>.c. */
#define FL_KERNEL(op, type, doc) type FL_NAME(fl_##op);
#include "kernels.inc"
#undef FL_KERNEL

#include "math_template.h"

#include "activation_template.h"
#include "cell_template.h"
#include "product_template.h"

#include "outer_template.h"

#include "lstm_template.h"

#include "gru_template.h"

#include "rnn_template.h"

#include "roof_template.h"

#define FL_KERNEL(op, type, doc) .op = FL_NAME(fl_##op),
const fl_kernels FL_NAME(fl_kernels) = {
    .isa = FL_ISA,
    .lanes = LANES,
    .panel_vecs = FL_PANEL_VECS,
    .row_panels = FL_ROW_PANELS,
    .element_bytes = sizeof(real),
#include "kernels.inc"
};
#undef FL_KERNEL
