/* Every kernel of one dtype and instruction set, and their table. Included once a dtype by each isa_<isa>.c. */
#ifdef FL_IS_F32
#define FL_KERNEL_F32(op, type, doc) type FL_NAME(fl_##op);
#endif
#define FL_KERNEL(op, type, doc) type FL_NAME(fl_##op);
#include "kernels.inc"

#include "math_template.h"

#include "activation_template.h"
#include "cell_template.h"
#include "product_template.h"
#ifdef FL_IS_F32
#define FL_BFLOAT16_WEIGHTS
#include "product_template.h"
#undef FL_BFLOAT16_WEIGHTS
#endif

#include "outer_template.h"

#include "lstm_template.h"

#include "gru_template.h"

#include "rnn_template.h"

#include "roof_template.h"

#ifdef FL_IS_F32
#define FL_KERNEL_F32(op, type, doc) .op = FL_NAME(fl_##op),
#endif
#define FL_KERNEL(op, type, doc) .op = FL_NAME(fl_##op),
const fl_kernels FL_NAME(fl_kernels) = {
    .isa = FL_ISA,
    .lanes = LANES,
    .panel_vecs = FL_PANEL_VECS,
    .row_panels = FL_ROW_PANELS,
    .element_bytes = sizeof(real),
#include "kernels.inc"
};
