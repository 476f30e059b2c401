/* The kernels of int8 weights and their tables. Included once by each isa_<isa>.c that has them. */
#ifndef OFFSET_int16
#define OFFSET_int16 0
#endif
#define FL_DTYPE int8
#define FL_GROUP 4
#define FL_MOST 127
#define FL_FLUSH INT64_MAX
#include "integer_template.h"
#undef FL_DTYPE
#undef FL_GROUP
#undef FL_MOST
#undef FL_FLUSH

#define FL_DTYPE int16
#define FL_GROUP 2
#define FL_MOST 32767
#define FL_FLUSH 512 /* 512 * 32767 * 127 < 2^31 */
#include "integer_template.h"
#undef FL_DTYPE
#undef FL_GROUP
#undef FL_MOST
#undef FL_FLUSH
